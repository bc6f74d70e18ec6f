"""Your own images: does a pretrained checkpoint help on your labels, and which way of tuning it?

    hf-transfer run image --dataset photos                    # photos/CLASS/*.jpg, or photos/train/CLASS/*.jpg beside validation and test
    accelerate launch recipes/image.py --dataset me/images --columns image=img label=kind --seeds 0 1 2
    hf-transfer new photos.py --from image                    # a recipe of your own, to edit

The rates are first choices for a ViT-base; --embedded brings those of its small ViT. Images that a mirror or a crop would make something
else (digits, signs) take --set task.augmentation=digits, or none.
"""

import hf_transfer as ht

RECIPE = ht.Recipe(
    name="image",
    task=ht.ImageClassification(
        image="image",
        label="label",
        augmentation=ht.Augmentation(crop_scale=0.5, flip=0.5, color_jitter=0.2),  # "photos"
    ),
    data=ht.DataConfig(),  # --dataset names it
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
