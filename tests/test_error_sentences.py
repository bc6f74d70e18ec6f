import pytest

from hf_transfer import errors
from hf_transfer.errors import TransferError

CLASSES = [found for found in vars(errors).values() if isinstance(found, type) and issubclass(found, TransferError)]


@pytest.mark.parametrize("error", CLASSES)
def test_a_sentence_is_one_line_that_any_terminal_prints(error: type[TransferError]) -> None:
    shown = str(error("no column 'a\r\n\u2028\x1b[31m\u202e\ud800', café 船 \\n stays"))
    assert shown == r"no column 'a\r\n\u2028\x1b[31m\u202e\ud800', café 船 \n stays"
    assert isinstance(error("x"), (ValueError, RuntimeError)) or error is TransferError
