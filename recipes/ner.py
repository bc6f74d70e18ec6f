"""Named entities in noisy text (WNUT 2017): does a pretrained encoder help, and which way of tuning it?

    accelerate launch recipes/ner.py
    accelerate launch recipes/ner.py --dataset unimelb-nlp/wikiann --dataset-config en --budgets 1000
    accelerate launch recipes/ner.py --dataset notes.conll                    # your own: CoNLL, or JSONL with tokens or with spans
    accelerate launch recipes/ner.py --embedded                               # no Hub needed

Measured on a CPU (AMD EPYC, 2 cores, bf16), 2026-11-20, commit 6e2a08c, with --checkpoint sentence-transformers/all-MiniLM-L6-v2; F1 of
entities; one seed, so the 95 % intervals cover other test rows only; the machine was shared: the times tell an order, not a speed.

    accelerate launch recipes/ner.py
    3,394 rows train, 1,009 validate, 1,287 test gain over scratch          trained    updates   time
    scratch  0.011 [0.004, 0.020]                                             22.6 M   2,130      18.0 min
    head     0.222 [0.193, 0.251]                +0.211 [+0.182, +0.240]       5.0 k   2,130       3.8 min
    lora     0.393 [0.358, 0.430]                +0.382 [+0.347, +0.419]     668.6 k   1,278       8.9 min
    full     0.415 [0.381, 0.450]                +0.404 [+0.370, +0.439]      22.6 M   1,278      10.9 min

    accelerate launch recipes/ner.py --dataset unimelb-nlp/wikiann --dataset-config en --budgets 1000
    800 rows train, 200 validate, 10,000 test    gain over scratch          trained    updates   time
    scratch  0.231 [0.224, 0.238]                                             22.6 M     500       3.4 min
    head     0.369 [0.361, 0.378]                +0.138 [+0.128, +0.148]       2.7 k     500       1.4 min
    lora     0.654 [0.645, 0.663]                +0.423 [+0.412, +0.433]     666.2 k     300       2.5 min
    full     0.668 [0.659, 0.677]                +0.437 [+0.426, +0.447]      22.6 M     300       2.7 min

With few labels, three seeds, intervals over training draws and test rows (2026-11-21, one thread, trained at commit 8399c64, compared at
7a6e9b5; verdicts by Holm's correction for 6 gains):

    accelerate launch recipes/ner.py --budgets 200 1000 --seeds 0 1 2
    160 rows train, 40 validate, 1,287 test      gain over scratch        verdict      trained    updates   time
    scratch  0.013 [0.001, 0.025]                                                       22.6 M     100      28 s
    head     0.053 [0.036, 0.071]                +0.041 [+0.025, +0.056]  helps          5.0 k     100       2 s
    lora     0.000 [0.000, 0.003]                -0.013 [-0.025, -0.001]  no evidence  668.6 k      60      17 s
    full     0.081 [0.000, 0.301]                +0.068 [-0.146, +0.282]  no evidence   22.6 M      60      18 s

    800 rows train, 200 validate, 1,287 test
    scratch  0.006 [0.000, 0.014]                                                       22.6 M     500       2.4 min
    head     0.107 [0.091, 0.124]                +0.102 [+0.086, +0.117]  helps          5.0 k     500       5 s
    lora     0.200 [0.000, 0.692]                +0.195 [-0.302, +0.691]  no evidence  668.6 k     300     113 s
    full     0.388 [0.357, 0.418]                +0.382 [+0.348, +0.415]  helps         22.6 M     300       2.3 min

With 200 sentences lora learns to name nothing, and full finds entities with some draws of them only; with 1,000 full does with every draw.
Scratch never learns to find entities here, at rates and epochs that were not searched: how many sentences it would need is not known.
On WNUT, scratch was restored from its first epoch, where the validation loss is lowest and hardly an entity is found yet. MiniLM knows no
capital letters, which bert-base-cased, the default, does; that has not been measured. Rates by validation loss on wikiann, one seed: head
is the best of 1e-3, 5e-3 and 2e-2, lora of 5e-4, 1e-3 and 2e-3; full did as well at 1e-4; scratch was not searched.
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
