"""Sentiment of film reviews (IMDb): does a pretrained encoder help, and which way of tuning it?

accelerate launch recipes/sentiment.py
accelerate launch recipes/sentiment.py --arms scratch lora --budgets 500 2000 --seeds 0 1 2
accelerate launch recipes/sentiment.py --embedded --max-length 128        # no Hub needed
"""

import hf_transfer as ht

RECIPE = ht.Recipe(
    name="sentiment",
    task=ht.TextClassification(
        text="text",
        label="label",
        max_length=256,
        # A review is 230 words on average, and its verdict stands at its end as often as at its beginning.
        keep="both",
        replace={"<br />": " "},
    ),
    data=ht.DataConfig("stanfordnlp/imdb"),
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
