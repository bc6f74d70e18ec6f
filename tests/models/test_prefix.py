"""A replayed frozen prefix: the plain model's logits and gradients on every architecture, and a model as it was afterwards."""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    AlbertConfig,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    ConvBertConfig,
    LongformerConfig,
    ModernBertConfig,
    MPNetConfig,
    PretrainedConfig,
    XLMRobertaConfig,
)
from transformers.utils import ModelOutput

from hf_transfer.models.build import quiet_loading
from hf_transfer.models.prefix import PREFIX, FrozenPrefix, find_prefix, stub_arguments
from hf_transfer.models.tuning import find_blocks, set_training_mode
from tests.models import test_architectures as texts
from tests.models import test_image_architectures as images

TEXTS: dict[str, PretrainedConfig] = texts.CONFIGS | {
    "mpnet": MPNetConfig(**texts.SHAPE, max_position_embeddings=66, pad_token_id=1),
    "xlmr": XLMRobertaConfig(**texts.SHAPE, max_position_embeddings=66, type_vocab_size=1),
    "modernbert-mean": ModernBertConfig(**texts.CONFIGS["modernbert"].to_dict() | {"classifier_pooling": "mean"}),
}
SEQUENCE, TOKEN, IMAGE = AutoModelForSequenceClassification, AutoModelForTokenClassification, AutoModelForImageClassification
# Of its two classifiers one is asked for by name.
NAMED = {"deit": {"architectures": ["DeiTForImageClassification"]}}
# Heads that look at the first token alone.
FIRST_ONLY = {"bert", "roberta", "distilbert", "deberta", "modernbert", "electra", "mpnet", "xlmr", "vit", "deit"}
CASES = [
    *[(SEQUENCE, name, tuning) for name in TEXTS for tuning in ("head", "top")],
    *[(TOKEN, name, tuning) for name in TEXTS if name not in ("bart", "modernbert-mean") for tuning in ("head", "top")],
    *[(IMAGE, name, tuning) for name in images.CONFIGS for tuning in ("head", "top")],
]
IDS = [f"{auto.__name__[12:15]}-{name}-{tuning}".lower() for auto, name, tuning in CASES]


def build(auto: Any, config: PretrainedConfig, tuning: str) -> nn.Module:
    """Build a model of random weights, of which the head (its pooler, too) trains, and with "top" the last block."""
    torch.manual_seed(5)
    with quiet_loading():
        model = auto.from_config(
            type(config)(**config.to_dict() | {"num_labels": 3, **NAMED.get(config.model_type, {})}), dtype=torch.float32
        )
    if auto is IMAGE:
        # Batch norms of a new model make MobileNetV2's features 0.
        with torch.no_grad():
            model.train()(torch.randn(16, 3, 32, 32))
    last = f"{find_blocks(model)[0]}.{len(find_blocks(model)[1]) - 1}." if tuning == "top" else "-"
    for name, parameter in model.named_parameters():
        backbone = name.startswith(f"{model.base_model_prefix}.") and "pooler" not in name
        parameter.requires_grad_(not backbone or name.startswith(last))
        # Heads that start at almost 0 would hide what they read.
        if not backbone and parameter.ndim > 1:
            nn.init.normal_(parameter.data, std=0.3)
    return model


def batch_of(model: nn.Module, lengths: list[int]) -> dict[str, torch.Tensor]:
    """Make padded texts of these lengths, or as many images."""
    generator = torch.Generator().manual_seed(sum(lengths))
    if model.main_input_name == "pixel_values":
        return {"pixel_values": torch.randn(len(lengths), 3, 32, 32, generator=generator)}
    ids = torch.randint(5, 300, (len(lengths), max(lengths)), generator=generator)
    ids[:, 0] = 0
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    ids[range(len(lengths)), torch.tensor(lengths) - 1] = 2
    return {"input_ids": ids.masked_fill(~mask, model.config.pad_token_id or 0), "attention_mask": mask.long()}


def found_prefix(model: nn.Module) -> FrozenPrefix:
    prefix = find_prefix(model, batch_of(model, [12, 4]))
    assert isinstance(prefix, FrozenPrefix), prefix
    return prefix


def replay_arguments(prefix: FrozenPrefix, arguments: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    with torch.inference_mode():
        hidden = prefix.compute(arguments)
    return {**stub_arguments(arguments, prefix.first_only), PREFIX: hidden.clone()}


def slopes(model: nn.Module, arguments: Mapping[str, torch.Tensor], mask: torch.Tensor | None) -> tuple[torch.Tensor, dict[str, Any]]:
    """Give the logits of what is no padding, and the gradients of what trains."""
    model.zero_grad()
    logits = model(**arguments).logits
    logits = logits[mask.bool()] if mask is not None and logits.ndim == 3 else logits
    logits.float().square().mean().backward()
    return logits.detach(), {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def surface(model: nn.Module) -> list[Any]:
    """Give all that a patch or a hook would leave at the modules."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs", "_backward_hooks")
    return [(sorted(vars(module)), [len(vars(module)[name]) for name in hooks]) for module in model.modules()]


def refuse(module: nn.Module, *_: Any) -> None:
    raise AssertionError(f"{type(module).__name__} of the prefix is computed")


@pytest.mark.parametrize(("auto", "name", "tuning"), CASES, ids=IDS)
def test_a_replay_is_the_model(auto: Any, name: str, tuning: str) -> None:
    model = build(auto, (TEXTS | images.CONFIGS)[name], tuning)
    before = surface(model)
    prefix = found_prefix(model)
    assert surface(model) == before
    stack, blocks = find_blocks(model)
    assert prefix.name == f"{stack}:{len(blocks) - (tuning == 'top')}"
    assert prefix.first_only == (auto is not TOKEN and tuning == "head" and name in FIRST_ONLY)
    assert len(prefix.modules) == len(blocks) - (tuning == "top") + 1, "the embeddings are left out, too"
    for lengths in ([7], [5, 19, 2, 8, 3], [20] * 4):
        batch = batch_of(model, lengths)
        mask = batch.get("attention_mask")
        logits, gradients = slopes(model, batch, mask)
        arguments = replay_arguments(prefix, batch)
        inner = [module for block in prefix.modules for module in list(block.modules())[1:]]
        hooks = [module.register_forward_hook(refuse) for module in inner]
        with prefix.replayed():
            again, others = slopes(model, arguments, mask)
            for hook in hooks:
                hook.remove()
            # Without the argument the model is whole, and a replay may follow again.
            assert torch.equal(slopes(model, batch, mask)[0], logits)
            assert torch.equal(slopes(model, arguments, mask)[0], again)
        largest = max(1.0, float(logits.abs().max()))
        assert (again - logits).abs().max() < 1e-6 * largest
        assert others.keys() == gradients.keys()
        for key, gradient in gradients.items():
            assert (others[key] - gradient).abs().max() < 2e-6 * max(1.0, float(gradient.abs().max())), key
    assert surface(model) == before
    assert torch.equal(slopes(model, batch, mask)[0], logits)


@pytest.mark.parametrize("name", ["bert", "deberta", "modernbert", "swin"])
def test_a_replay_trains_with_dropout_behind_the_cut(name: str) -> None:
    """The same generator gives the same masks: the prefix draws none."""
    auto = IMAGE if name == "swin" else SEQUENCE
    model = build(auto, (TEXTS | images.CONFIGS)[name], "top")
    prefix = found_prefix(model)
    batch = batch_of(model, [9, 5, 3])
    arguments = replay_arguments(prefix, batch)
    set_training_mode(model)
    torch.manual_seed(3)
    logits, _ = slopes(model, batch, None)
    torch.manual_seed(3)
    with prefix.replayed():
        again, _ = slopes(model, arguments, None)
    assert (again - logits).abs().max() < 1e-5


def test_a_replay_in_bf16_is_as_near_as_bf16() -> None:
    model = build(SEQUENCE, TEXTS["bert"], "head")
    prefix, batch = found_prefix(model), batch_of(model, [9, 5, 3])
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        logits = model(**batch).logits
        arguments = replay_arguments(prefix, batch)
        with prefix.replayed():
            assert torch.equal(model(**arguments).logits, logits)


def test_the_model_is_as_before_after_an_error() -> None:
    model = build(SEQUENCE, TEXTS["bert"], "head")
    before, prefix, batch = surface(model), found_prefix(model), batch_of(model, [6, 3])
    logits = model(**batch).logits
    with pytest.raises(ZeroDivisionError), prefix.replayed():
        model(**replay_arguments(prefix, batch))
        raise ZeroDivisionError
    assert surface(model) == before
    with pytest.raises((RuntimeError, ValueError, IndexError)):
        prefix.compute({"input_ids": torch.full((1, 3), 10_000)})
    with pytest.raises((RuntimeError, ValueError, IndexError)):
        find_prefix(model, {"input_ids": torch.full((1, 3), 10_000)})
    assert surface(model) == before
    assert torch.equal(model(**batch).logits, logits)
    with prefix.replayed(), pytest.raises(RuntimeError):
        model(**batch, **{PREFIX: torch.zeros(2, 1, 7)})
    assert torch.equal(model(**batch).logits, logits)


def test_what_follows_the_prefix_does_not_run() -> None:
    model = build(SEQUENCE, TEXTS["bert"], "top")
    prefix = found_prefix(model)
    ran: list[str] = []
    for module in (model.classifier, find_blocks(model)[1][1], find_blocks(model)[1][0]):
        module.register_forward_hook(lambda module, *_: ran.append(type(module).__name__))
    prefix.compute(batch_of(model, [6, 3]))
    assert ran == ["BertLayer"]


def test_the_first_token_alone_is_held_in_memory() -> None:
    model = build(SEQUENCE, TEXTS["bert"], "head")
    prefix = found_prefix(model)
    with torch.inference_mode():
        hidden = prefix.compute(batch_of(model, [40, 3]))
    assert hidden.shape == (2, 1, 32)
    assert hidden.untyped_storage().nbytes() == hidden.nbytes


@pytest.mark.parametrize(("auto", "name"), [(SEQUENCE, "bert"), (IMAGE, "resnet")])
def test_all_that_is_frozen_names_the_prefix(auto: Any, name: str) -> None:
    model = build(auto, (TEXTS | images.CONFIGS)[name], "head")
    named = dict(found_prefix(model).tensors())
    trained = {key for key, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained
    assert named.keys() == model.state_dict().keys() - trained
    assert any("running_mean" in key for key in named) == (name == "resnet")


@pytest.mark.parametrize("first", ["bert.embeddings.LayerNorm.bias", "bert.encoder.layer.0.output.dense.weight"])
def test_what_trains_early_leaves_no_prefix(first: str) -> None:
    model = build(SEQUENCE, TEXTS["bert"], "head")
    model.get_parameter(first).requires_grad_(True)
    assert find_prefix(model, batch_of(model, [6, 3])) == "something trains before its first block ends"


def test_blocks_of_shared_weights_say_why_not() -> None:
    shape = texts.SHAPE | {"embedding_size": 16, "max_position_embeddings": 64}
    for settings, reason in (
        ({}, "this architecture has no stack of blocks"),
        ({"num_hidden_groups": 2}, "its blocks do not run one after"),
    ):
        model = build(SEQUENCE, AlbertConfig(**shape | settings | {"num_hidden_layers": 4}), "head")
        found = find_prefix(model, batch_of(model, [6, 3]))
        assert isinstance(found, str)
        assert found.startswith(reason)


def test_a_head_of_zeros_does_not_hide_what_it_reads() -> None:
    model = build(SEQUENCE, TEXTS["modernbert-mean"], "head")
    nn.init.zeros_(model.classifier.weight)
    nn.init.zeros_(model.classifier.bias)
    assert not found_prefix(model).first_only


class Toy(nn.Module):
    """Embeds, runs two blocks whose output is wrapped, and takes the mean."""

    main_input_name = "input_ids"
    config = SimpleNamespace(pad_token_id=0)

    def __init__(self, wrap: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embeddings = Block(wrap, nn.Embedding(300, 8))
        self.blocks = nn.ModuleList([Block(wrap, nn.Linear(8, 8)) for _ in range(2)])
        self.classifier = nn.Linear(8, 3)
        for parameter in [*self.embeddings.parameters(), *self.blocks.parameters()]:
            parameter.requires_grad_(False)
        self.skips = wrap == "skip"

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        hidden = start = self.embeddings(input_ids)
        for block in self.blocks:
            hidden = block(unwrapped(hidden))
        states = unwrapped(hidden) + (unwrapped(start) if self.skips else 0)
        weights = attention_mask[..., None].float()
        return SimpleNamespace(logits=self.classifier((states * weights).sum(1) / weights.sum(1)))


class Block(nn.Module):
    def __init__(self, wrap: str, inner: nn.Module) -> None:
        super().__init__()
        self.wrap, self.inner = wrap, inner

    def forward(self, values: torch.Tensor) -> Any:
        found = self.inner(values)
        return {
            "list": [found, None],
            "tuple": (found, (found.shape[0], None)),
            "dict": {"hidden": found, "size": 3},
            "output": ModelOutput(hidden=found),
        }.get(self.wrap, found)


def unwrapped(values: Any) -> torch.Tensor:
    return values if isinstance(values, torch.Tensor) else next(iter(values.values())) if isinstance(values, Mapping) else values[0]


@pytest.mark.parametrize("wrap", ["tensor", "tuple", "list", "dict", "output"])
def test_blocks_answer_with_this_batch_however_they_wrap_it(wrap: str) -> None:
    model = Toy(wrap)
    prefix = found_prefix(model)
    assert not prefix.first_only
    for lengths in ([12, 4], [9, 3, 5]):
        batch = batch_of(model, lengths)
        arguments = replay_arguments(prefix, batch)
        with prefix.replayed():
            assert torch.allclose(model(**arguments).logits, model(**batch).logits, atol=1e-6)


def test_what_is_read_before_the_cut_too_cannot_be_replayed() -> None:
    model = Toy("skip")
    assert find_prefix(model, batch_of(model, [12, 4])) == "replaying its blocks gave other logits"
    assert "forward" not in vars(model.blocks[0])


@pytest.mark.parametrize("kind", ["token", "sequence"])
def test_an_architecture_that_pads_by_itself_is_refused(kind: str) -> None:
    """Its blocks see whole attention windows: what is kept of a row's own tokens cannot be put back."""
    config = LongformerConfig(
        vocab_size=99,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        attention_window=[8, 8],
    )
    auto_model = AutoModelForTokenClassification if kind == "token" else AutoModelForSequenceClassification
    model = auto_model.from_config(config)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("classifier"))
    ids = torch.randint(5, 99, (2, 13))
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    assert find_prefix(model, {"input_ids": ids, "attention_mask": mask}) == "its blocks see other tokens than it is given"


def test_a_model_that_reads_padding_is_refused() -> None:
    """ConvBERT's convolutions reach into what stands behind a row."""
    torch.manual_seed(0)
    config = ConvBertConfig(
        vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, initializer_range=0.2
    )
    model = AutoModelForSequenceClassification.from_config(config)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("classifier") or ".layer.1." in name)
    ids = torch.randint(5, 99, (2, 13))
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    assert find_prefix(model, {"input_ids": ids, "attention_mask": mask}) == "replaying its blocks gave other logits"
