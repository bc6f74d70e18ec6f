"""Photos of ten kinds of things (CIFAR-10): does a pretrained vision transformer help, and which way of tuning it?

    accelerate launch recipes/vit.py
    accelerate launch recipes/vit.py --arms scratch lora --budgets 500 2000 --seeds 0 1 2
    accelerate launch recipes/vit.py --embedded               # no Hub needed: scikit-learn's digits, and a small ViT of our own

Nothing was measured with ViT-base, the default: no vision checkpoint was at hand, and its rates are first choices. Measured instead with
the small ViT that --embedded starts from, which this recipe pretrained on CIFAR-10 (0.588 on its test photos; the card in
hf_transfer/models/embedded/vit-cifar10 has the command), so all tables are chained transfer. CPU (AMD EPYC, 2 cores, one thread a run,
bf16), 2026-11-20, commit 4d61219; mean [95 %] over seeds and test rows; the machine was shared: the times tell an order, not a speed.

From CIFAR-10 to MNIST (12,000 training and 3,000 test rows were at hand):

    accelerate launch recipes/vit.py --embedded --dataset ylecun/mnist --set task.augmentation=digits --budgets 100 1000 --seeds 0 1 2

    80 rows train, 20 validate, 3,000 test       gain over scratch          verdict       trained    updates   time
    scratch  0.280 [0.219, 0.341]                                                           1.3 M      90      21 s
    head     0.378 [0.319, 0.436]                +0.098 [+0.016, +0.180]    no evidence     1.6 k      30       6 s
    lora     0.364 [0.329, 0.400]                +0.084 [+0.003, +0.165]    no evidence   185.9 k      30      12 s
    full     0.335 [0.263, 0.406]                +0.055 [-0.069, +0.178]    no evidence     1.3 M      30       7 s

    800 rows train, 200 validate, 3,000 test     gain over scratch          verdict       trained    updates   time
    scratch  0.847 [0.769, 0.924]                                                           1.3 M     750       3.6 min
    head     0.532 [0.496, 0.568]                -0.314 [-0.385, -0.244]    hurts           1.6 k     250      33 s
    lora     0.724 [0.679, 0.768]                -0.123 [-0.209, -0.037]    no evidence   185.9 k     250     105 s
    full     0.734 [0.673, 0.796]                -0.112 [-0.244, +0.020]    no evidence     1.3 M     250      59 s

To the embedded digits (the first at commit 997480e, which draws other augmentations):

    accelerate launch recipes/vit.py --embedded --arms scratch head top lora full --budgets 200 --seeds 0 1 2

    160 rows train, 40 validate, 360 test        gain over scratch          verdict       trained    updates   time
    scratch  0.603 [0.354, 0.851]                                                           1.3 M     150      28 s
    head     0.708 [0.612, 0.805]                +0.106 [-0.180, +0.391]    no evidence     1.6 k      50       4 s
    top      0.726 [0.612, 0.839]                +0.123 [-0.196, +0.443]    no evidence   620.2 k      50       7 s
    lora     0.685 [0.494, 0.876]                +0.082 [-0.308, +0.473]    no evidence   185.9 k      50      11 s
    full     0.673 [0.575, 0.771]                +0.070 [-0.207, +0.347]    no evidence     1.3 M      50      11 s

    accelerate launch recipes/vit.py --embedded --arms scratch head top lora full --seeds 0 1

    1,150 rows train, 287 validate, 360 test     gain over scratch          verdict       trained    updates   time
    scratch  0.949 [0.797, 1.000]                                                           1.3 M   1,080       5.0 min
    head     0.842 [0.600, 1.000]                -0.107 [-0.352, +0.138]    no evidence     1.6 k     360      29 s
    top      0.892 [0.706, 1.000]                -0.057 [-0.233, +0.119]    no evidence   620.2 k     360      40 s
    lora     0.943 [0.800, 1.000]                -0.006 [-0.163, +0.152]    no evidence   185.9 k     360       2.2 min
    full     0.936 [0.679, 1.000]                -0.013 [-0.183, +0.158]    no evidence     1.3 M     360      89 s

The verdict: 40,000 small photos taught this small ViT a little that helps with digits. With 80 or 160 rows every pretrained arm lies ahead,
in a third of the updates, short of evidence over three seeds after Holm's correction. From 800 rows on scratch does (of head on MNIST
beyond doubt), which is allowed three times the epochs; given as many on MNIST (--arms full --epochs 30, 750 updates), full reaches 0.884
[0.854, 0.914], each of the three seeds above scratch's: ten epochs do not bring it to its end. A frozen backbone of photos is a poor reader
of digits.
Rates: of three an arm by validation loss on MNIST (budget 400, one seed), see EMBEDDED_RATES in hf_transfer/flags.py.
"""

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
