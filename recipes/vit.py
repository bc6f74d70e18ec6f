"""Photos of ten kinds of things (CIFAR-10): does a pretrained vision transformer help, and which way of tuning it?"""

import hf_transfer as ht

RECIPE = ht.Recipe(
    name="vit",
    task=ht.ImageClassification(
        image="img",
        label="label",
        augmentation=ht.Augmentation(crop_scale=0.5, flip=0.5, color_jitter=0.2),  # "photos"; --set task.augmentation=none|digits|photos
    ),
    data=ht.DataConfig("uoft-cs/cifar10"),
    checkpoint="google/vit-base-patch16-224-in21k",
    arms={
        "scratch": ht.Arm(init="scratch", tuning="full", learning_rate=3e-4, num_epochs=30),
        "head": ht.Arm(tuning="head", learning_rate=5e-3, num_epochs=10),
        "top": ht.Arm(tuning="top", num_blocks=2, learning_rate=1e-4, num_epochs=10),
        "lora": ht.Arm(tuning="lora", learning_rate=1e-3, num_epochs=10),
        "full": ht.Arm(tuning="full", learning_rate=1e-4, num_epochs=10),
    },
    training=ht.TrainingConfig(batch_size=32),
)

if __name__ == "__main__":
    ht.main(RECIPE)
