"""The report of a finished run: its folder -> facts -> sentences, tables and charts -> one page, markdown, csv or json."""
