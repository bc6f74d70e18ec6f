"""Named entities in noisy text (WNUT 2017): does a pretrained encoder help, and which way of tuning it?

accelerate launch recipes/ner.py
accelerate launch recipes/ner.py --dataset unimelb-nlp/wikiann --dataset-config en --budgets 1000
accelerate launch recipes/ner.py --dataset notes.conll                    # your own: CoNLL, or JSONL with tokens or with spans
accelerate launch recipes/ner.py --embedded                               # no Hub needed
"""

import hf_transfer as ht

RECIPE = ht.Recipe(
    name="ner",
    task=ht.TokenClassification(tokens="tokens", ner_tags="ner_tags", max_length=128, loss_per="word"),
    data=ht.DataConfig("leondz/wnut_17"),
    checkpoint="google-bert/bert-base-cased",
    arms={
        "scratch": ht.Arm(init="scratch", tuning="full", learning_rate=3e-4, num_epochs=10),
        "head": ht.Arm(tuning="head", learning_rate=5e-3, num_epochs=10),
        "lora": ht.Arm(tuning="lora", learning_rate=1e-3, num_epochs=6),
        "full": ht.Arm(tuning="full", learning_rate=2e-4, num_epochs=6),
    },
    training=ht.TrainingConfig(batch_size=16),
)

if __name__ == "__main__":
    ht.main(RECIPE)
