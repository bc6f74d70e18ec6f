"""Topics of 20 Newsgroups posts: does a pretrained encoder help, and which way of tuning it?

accelerate launch recipes/newsgroups.py
accelerate launch recipes/newsgroups.py --arms scratch lora --budgets 500 2000 --seeds 0 1 2
accelerate launch recipes/newsgroups.py --embedded        # no Hub needed
"""

import hf_transfer as ht

# The data's integers are numbered in this order; headers, quotes and footers are stripped (headers leak the label).
NEWSGROUPS = [
    "alt.atheism",
    "comp.graphics",
    "comp.os.ms-windows.misc",
    "comp.sys.ibm.pc.hardware",
    "comp.sys.mac.hardware",
    "comp.windows.x",
    "misc.forsale",
    "rec.autos",
    "rec.motorcycles",
    "rec.sport.baseball",
    "rec.sport.hockey",
    "sci.crypt",
    "sci.electronics",
    "sci.med",
    "sci.space",
    "soc.religion.christian",
    "talk.politics.guns",
    "talk.politics.mideast",
    "talk.politics.misc",
    "talk.religion.misc",
]

RECIPE = ht.Recipe(
    name="newsgroups",
    task=ht.TextClassification(text="text", label="label", max_length=256),
    data=ht.DataConfig("SetFit/20_newsgroups", label_names=NEWSGROUPS),
    checkpoint="answerdotai/ModernBERT-base",
    arms={
        "scratch": ht.Arm(init="scratch", tuning="full", learning_rate=3e-4, num_epochs=10),
        "head": ht.Arm(tuning="head", learning_rate=2e-2, num_epochs=10),
        "top": ht.Arm(tuning="top", num_blocks=2, learning_rate=5e-4, num_epochs=6),
        "lora": ht.Arm(tuning="lora", learning_rate=2e-3, num_epochs=6, lora=ht.LoRA(r=16, lora_alpha=32)),
        "full": ht.Arm(tuning="full", learning_rate=2e-4, num_epochs=6),
    },
    training=ht.TrainingConfig(batch_size=16),
)

if __name__ == "__main__":
    ht.main(RECIPE)
