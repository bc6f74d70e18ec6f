"""Your own texts: does a pretrained encoder help on your labels, and which way of tuning it?

    hf-transfer run text --dataset reviews.csv --columns text=review label=stars
    accelerate launch recipes/text.py --dataset reviews.csv --columns text=review label=stars --seeds 0 1 2
    accelerate launch recipes/text.py --dataset pairs.jsonl --columns text=premise text_pair=hypothesis label=verdict
    hf-transfer new reviews.py --from text                    # a recipe of your own, to edit

The rates are those of recipes/newsgroups.py, for a small encoder; ModernBERT-base has not been measured: start `full` at 5e-5 there.
"""

import hf_transfer as ht

RECIPE = ht.Recipe(
    name="text",
    task=ht.TextClassification(text="text", label="label", max_length=256),
    data=ht.DataConfig(),  # --dataset names it
    checkpoint="answerdotai/ModernBERT-base",
    arms={
        "scratch": ht.Arm(init="scratch", tuning="full", learning_rate=3e-4, num_epochs=10),
        "head": ht.Arm(tuning="head", learning_rate=1e-3, num_epochs=10),
        "lora": ht.Arm(tuning="lora", learning_rate=1e-3, num_epochs=6),
        "full": ht.Arm(tuning="full", learning_rate=2e-4, num_epochs=6),
    },
    training=ht.TrainingConfig(batch_size=16),
)

if __name__ == "__main__":
    ht.main(RECIPE)
