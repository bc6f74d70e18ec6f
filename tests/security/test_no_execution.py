"""No file is unpickled and no code of a checkpoint or a dataset is run: what is planted stays so, and the user gets one sentence."""

import ast
import builtins
import io
import json
import pickle
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sqlalchemy
import torch
from optuna.storages._rdb import models

import hf_transfer as ht
from hf_transfer.errors import CheckpointError, ConfigError, DataError, TransferError
from tests.conftest import Run, make_rows, refused, write_csv

PACKAGE = Path(ht.__file__).parent
RUN = ("--max-length", 32, "--arms", "head", "--epochs", 1, "--output-dir", "out")


def test_the_bombs_are_live(pickles: dict[str, bytes], marker: Path) -> None:
    for load in (
        lambda: pickle.loads(pickles["pickle"]),
        lambda: torch.load(io.BytesIO(pickles["torch"]), weights_only=False),
        lambda: np.load(io.BytesIO(pickles["numpy"]), allow_pickle=True),
    ):
        load()
        marker.rmdir()


def copy_of(checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoint, tmp_path / "checkpoint"))


def plant_index(folder: Path, target: str) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    index = {"metadata": {"total_size": 1}, "weight_map": {"embeddings.word_embeddings.weight": target}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "pytorch_model-00001-of-00001.bin", "checkpoint.pth", "model.ckpt"])
def test_pickled_weights_alone_are_refused(
    run: Run, tiny_bert: Path, topics_folder: Path, tmp_path: Path, pickles: dict[str, bytes], name: str
) -> None:
    folder = copy_of(tiny_bert, tmp_path)
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(pickles["torch"])
    said = refused(run("run", "text", "--dataset", topics_folder, "--checkpoint", folder, *RUN))
    assert "has no *.safetensors file (pickled weights are not read)" in said


@pytest.mark.parametrize("target", ["pytorch_model.bin", "../elsewhere.safetensors", "/etc/passwd", "sub/model.safetensors", 7])
def test_an_index_leads_neither_to_a_pickle_nor_out_of_the_folder(
    run: Run, tiny_bert: Path, topics_folder: Path, tmp_path: Path, pickles: dict[str, bytes], target: str
) -> None:
    folder = copy_of(tiny_bert, tmp_path)
    shutil.copy(folder / "model.safetensors", tmp_path / "elsewhere.safetensors")
    (folder / "pytorch_model.bin").write_bytes(pickles["torch"])
    plant_index(folder, target)
    said = refused(run("run", "text", "--dataset", topics_folder, "--checkpoint", folder, *RUN))
    assert f"model.safetensors.index.json names {target}, expected *.safetensors files beside it" in said


def test_pickles_beside_the_weights_are_not_read(
    run: Run, tiny_bert: Path, topics_folder: Path, tmp_path: Path, pickles: dict[str, bytes]
) -> None:
    folder = copy_of(tiny_bert, tmp_path)
    names = (
        "pytorch_model.bin training_args.bin optimizer.pt optimizer.bin scheduler.pt scaler.pt rng_state.pth random_states_0.pkl vocab.pkl"
    )
    for name in [*names.split(), "tokenizer.pkl", "adapter_model.bin", "model.npy", "tokenizer.bin", "pytorch_model.bin.index.json"]:
        (folder / name).write_bytes(pickles["torch" if "p" in name[:2] else "pickle"])
    (folder / "state").mkdir()
    (folder / "state" / "optimizer.bin").write_bytes(pickles["torch"])
    code, _, err = run("run", "text", "--dataset", topics_folder, "--checkpoint", folder, *RUN)
    assert code == 0, err
    model = Path("out/head/budget-all/seed-0/model")
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt", "adapter_model.bin"):
        (model / name).write_bytes(pickles["torch"])
    assert ht.load("out").predict(["anchor"])[0]["label"]


def test_an_adapter_is_read_from_safetensors_only(adapter: Path, pickles: dict[str, bytes]) -> None:
    (adapter / "adapter_model.bin").write_bytes(pickles["torch"])
    assert ht.load(adapter).predict(["anchor"])[0]["label"]
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"has no adapter_model\.safetensors \(pickled weights are not read\)"):
        ht.load(adapter)


def test_an_adapter_beside_a_model_is_refused(
    run: Run, tiny_bert: Path, topics_folder: Path, tmp_path: Path, adapter: Path, pickles: dict[str, bytes]
) -> None:
    folder = copy_of(tiny_bert, tmp_path)
    shutil.copy(adapter / "adapter_config.json", folder)
    (folder / "adapter_model.bin").write_bytes(pickles["torch"])
    said = refused(run("run", "text", "--dataset", topics_folder, "--checkpoint", folder, *RUN))
    assert "holds both a model (config.json) and an adapter" in said


@pytest.mark.parametrize("change", [{"peft_type": "XLORA"}, {"megatron_config": {"a": 1}, "megatron_core": "os"}, {"peft_type": None}])
def test_an_adapter_is_lora_and_imports_nothing(adapter: Path, change: dict[str, object]) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError, match="is not the LoRA this package writes"):
        ht.load(adapter)


@pytest.mark.parametrize("kind", ["pickle", "torch", "numpy"])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("x.pkl", "expected one of .csv"),
        ("x.pt", "expected one of .csv"),
        ("x.npy", "expected one of .csv"),
        ("x.npz", "expected one of .csv"),
        ("x.joblib", "expected one of .csv"),
        ("x.arrow", "expected one of .csv"),
        ("folder/train.pkl", "has no train file"),
        ("folder/data-00000-of-00001.arrow", "has no train file"),
        ("x.csv", "is not UTF-8"),
        ("x.jsonl", "is not UTF-8"),
        ("x.json", "is not UTF-8"),
        ("x.txt", "is not UTF-8"),
        ("x.parquet", "is no readable Parquet file"),
    ],
)
def test_a_pickle_is_no_data(
    run: Run, tiny_bert: Path, tmp_path: Path, pickles: dict[str, bytes], kind: str, name: str, message: str
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / name).write_bytes(pickles[kind])
    data = tmp_path / name if "/" not in name else tmp_path / "folder"
    assert message in refused(run("run", "text", "--dataset", data, "--checkpoint", tiny_bert, *RUN))


@pytest.mark.parametrize(
    "metadata",
    [
        {b"ARROW:extension:name": b"arrow.py_extension_type", b"ARROW:extension:metadata": b"PICKLE"},
        {b"ARROW:extension:name": b"pandas.sparse", b"ARROW:extension:metadata": b"PICKLE"},
    ],
)
def test_a_pickled_type_in_parquet_is_not_read(
    run: Run, tiny_bert: Path, tmp_path: Path, pickles: dict[str, bytes], metadata: dict[bytes, bytes]
) -> None:
    """Arrow once unpickled such a type whenever a file that names it was opened (CVE-2023-47248)."""
    metadata = {key: pickles["pickle"] if value == b"PICKLE" else value for key, value in metadata.items()}
    rows = make_rows(60)
    fields = [pa.field("text", pa.string()), pa.field("label", pa.string()), pa.field("extra", pa.binary(), metadata=metadata)]
    columns = [[row["text"] for row in rows], [row["label"] for row in rows], [pickles["pickle"]] * len(rows)]
    schema = pa.schema(fields, metadata={b"pandas": pickles["pickle"]})
    pq.write_table(pa.table([pa.array(values) for values in columns], schema=schema), tmp_path / "x.parquet")
    code, _, err = run("validate", "text", "--dataset", tmp_path / "x.parquet", "--checkpoint", tiny_bert, "--max-length", 32)
    assert code == 0, err


def test_pickles_in_the_cache_are_not_read(
    run: Run, tiny_bert: Path, topics_folder: Path, cache: Path, pickles: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["run", "text", "--dataset", topics_folder, "--checkpoint", tiny_bert, *RUN[:-1]]
    assert run(*words, "first")[0] == 0
    held = [path for path in cache.rglob("*") if path.is_file()]
    assert held, "there is something to be replaced"
    for path in held:
        path.write_bytes(pickles["torch"])
        path.with_suffix(".pkl").write_bytes(pickles["pickle"])
    code, _, err = run(*words, "second")
    assert code == 0, err
    first, second = (Path(name, "head/budget-all/seed-0/model/model.safetensors").read_bytes() for name in ("first", "second"))
    assert first == second


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet"])
def test_a_pickle_is_nothing_to_predict(topics_model: Path, tmp_path: Path, pickles: dict[str, bytes], suffix: str) -> None:
    (tmp_path / f"x.{suffix}").write_bytes(pickles["torch"])
    with pytest.raises(DataError):
        ht.load(topics_model).predict_file(tmp_path / f"x.{suffix}", tmp_path / "out.csv")
    assert not (tmp_path / "out.csv").exists()


def test_the_database_of_trials_holds_no_pickle() -> None:
    """A shared `--search-storage` is read by everybody: Optuna keeps numbers, names and JSON in it."""
    tables = models.BaseModel.metadata.tables.values()
    kinds = {type(column.type) for table in tables for column in table.columns}
    assert kinds and not any(issubclass(kind, (sqlalchemy.PickleType, sqlalchemy.LargeBinary)) for kind in kinds)


EVIL_YAML = [
    "!!python/object/apply:os.mkdir ['{}']",
    "!!python/object/new:os.mkdir ['{}']",
    "!!python/name:os.mkdir ''",
    "!!python/module:os ''",
]


@pytest.mark.parametrize("value", EVIL_YAML)
def test_yaml_makes_no_objects(run: Run, lora_run: Path, tmp_path: Path, marker: Path, value: str) -> None:
    value = value.format(marker)
    (tmp_path / "x.yaml").write_text(f"name: {value}\n")
    assert "is no YAML" in refused(run("run", tmp_path / "x.yaml"))
    assert "is no YAML" in refused(run("run", "newsgroups", "--embedded", "--config", tmp_path / "x.yaml"))
    assert "is no YAML value" in refused(run("run", "newsgroups", "--embedded", "--set", f"data.source={value}"))
    shutil.copytree(lora_run, tmp_path / "run")
    (tmp_path / "run" / "recipe.yaml").write_text(f"name: topics\nrun: {value}\n")
    assert "is no YAML" in refused(run("report", tmp_path / "run"))
    with pytest.raises(ConfigError, match="is no YAML"):
        ht.load_recipe(tmp_path / "x.yaml")


def plant_code(folder: Path, marker: Path, **files: dict[str, object]) -> None:
    """Write code of one's own beside a checkpoint, and changes to its JSON files that name it."""
    code = f"import os\nos.mkdir({str(marker)!r})\nclass Mine: pass\n"
    for name in ("modeling_mine.py", "configuration_mine.py", "tokenization_mine.py", "processing_mine.py", "__init__.py"):
        (folder / name).write_text(code)
    for name, changes in files.items():
        path = folder / f"{name}.json"
        path.write_text(json.dumps((json.loads(path.read_text()) if path.is_file() else {}) | changes))


MAPS = {
    "AutoConfig": "configuration_mine.Mine",
    "AutoModel": "modeling_mine.Mine",
    "AutoModelForSequenceClassification": "modeling_mine.Mine",
    "AutoModelForImageClassification": "modeling_mine.Mine",
    "AutoTokenizer": ["tokenization_mine.Mine", "tokenization_mine.Mine"],
    "AutoImageProcessor": "processing_mine.Mine",
}


@pytest.fixture
def nobody_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse questions, and set every switch that ever allowed code."""

    def asked(*_: object) -> str:
        pytest.fail("the user is asked whether to run the code")

    monkeypatch.setattr(builtins, "input", asked)
    for name in ("HF_TRUST_REMOTE_CODE", "TRUST_REMOTE_CODE", "TRANSFORMERS_TRUST_REMOTE_CODE", "HF_DATASETS_TRUST_REMOTE_CODE"):
        monkeypatch.setenv(name, "1")


@pytest.mark.usefixtures("nobody_is_asked")
@pytest.mark.parametrize("model_type", ["mine", "vit", None])
def test_a_checkpoint_that_needs_code_of_its_own_is_refused(
    run: Run, tiny_bert: Path, topics_folder: Path, tmp_path: Path, marker: Path, model_type: str | None
) -> None:
    folder = copy_of(tiny_bert, tmp_path)
    plant_code(folder, marker, config={"auto_map": MAPS, "model_type": model_type}, tokenizer_config={"auto_map": MAPS})
    said = refused(run("run", "text", "--dataset", topics_folder, "--checkpoint", folder, *RUN))
    assert "code" in said or "cannot do this task" in said


@pytest.mark.usefixtures("nobody_is_asked")
def test_code_beside_a_known_architecture_is_not_run(run: Run, tiny_bert: Path, topics_folder: Path, tmp_path: Path, marker: Path) -> None:
    folder = copy_of(tiny_bert, tmp_path)
    plant_code(folder, marker, config={"auto_map": MAPS}, tokenizer_config={"auto_map": MAPS}, generation_config={"auto_map": MAPS})
    code, _, err = run("run", "text", "--dataset", topics_folder, "--checkpoint", folder, *RUN)
    assert code == 0, err
    model = Path("out/head/budget-all/seed-0/model")
    plant_code(model, marker, config={"auto_map": MAPS}, tokenizer_config={"auto_map": MAPS})
    assert ht.load("out").predict(["anchor"])[0]["label"]
    plant_code(model, marker, config={"model_type": "vit"})
    with pytest.raises(TransferError):
        ht.load("out")


@pytest.mark.usefixtures("nobody_is_asked")
def test_an_image_processor_of_its_own_is_not_run(run: Run, tiny_vit: Path, photos_folder: Path, tmp_path: Path, marker: Path) -> None:
    folder = copy_of(tiny_vit, tmp_path)
    plant_code(folder, marker, config={"auto_map": MAPS}, preprocessor_config={"auto_map": MAPS, "image_processor_type": "Mine"})
    said = refused(run("run", "image", "--dataset", photos_folder, "--checkpoint", folder, "--arms", "head"))
    assert "has no image processor that can be loaded" in said


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
def test_a_config_names_no_kernel_of_the_hub(run: Run, tiny_bert: Path, topics_folder: Path, tmp_path: Path, key: str) -> None:
    """Transformers takes `owner/name` for attention code that it downloads."""
    folder = copy_of(tiny_bert, tmp_path)
    plant_code(folder, tmp_path / "unused", config={key: "someone/kernel"})
    said = refused(run("run", "text", "--dataset", topics_folder, "--checkpoint", folder, *RUN))
    assert "its config.json names attention code to be fetched (someone/kernel)" in said


@pytest.mark.usefixtures("nobody_is_asked")
def test_scripts_of_datasets_and_metrics_are_not_run(run: Run, tiny_bert: Path, topics_folder: Path, tmp_path: Path, marker: Path) -> None:
    data = Path(shutil.copytree(topics_folder, tmp_path / "topics"))
    code = f"import os\nos.mkdir({str(marker)!r})\n"
    for name in ("topics.py", "dataset.py", "train.py", "conftest.py", "__init__.py"):
        (data / name).write_text(code)
    # `evaluate.load("accuracy")` and `load_dataset("csv")` would look here first.
    for name in ("accuracy", "f1", "mcc", "matthews_correlation", "seqeval", "csv", "parquet", "text", "newsgroups"):
        Path(name).mkdir()
        Path(name, f"{name}.py").write_text(code)
    result = run("run", "text", "--dataset", data, "--checkpoint", tiny_bert, *RUN)
    assert result[0] == 0, result[2]
    said = run("run", "text", "--dataset", data / "topics.py", "--checkpoint", tiny_bert, *RUN[:-1], "other")
    assert said[0] == 2 and "expected one of .csv" in said[2]


@pytest.mark.parametrize("name", ["data.zip", "data.tar", "data.tar.gz", "train.csv.gz"])
def test_archives_are_not_opened(run: Run, tiny_bert: Path, tmp_path: Path, marker: Path, name: str) -> None:
    """So no member of one can lie elsewhere, or be larger than it says."""
    with zipfile.ZipFile(tmp_path / name, "w") as archive:
        archive.writestr("../EXECUTED/x.csv", "text,label\na,b\n")
    assert "expected one of .csv" in refused(run("run", "text", "--dataset", tmp_path / name, "--checkpoint", tiny_bert, *RUN))


UNSAFE_MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "jsonpickle"}
UNSAFE_NAMES = {"eval", "exec", "__import__"}
UNSAFE_ATTRIBUTES = {
    "torch.load",
    "np.load",
    "numpy.load",
    "yaml.load",
    "yaml.load_all",
    "yaml.full_load",
    "yaml.unsafe_load",
    "pd.read_pickle",
    "os.system",
    "os.popen",
    "torch.hub.load",
    "evaluate.load",
    "datasets.load_from_disk",
}
NEED_A_REFUSAL = {"from_pretrained", "from_config"}


def unsafe_uses(source: str) -> list[str]:
    """Give the calls and imports of a module by which a file could run code."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.split(".")[0] in UNSAFE_MODULES]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in UNSAFE_MODULES:
            found.append(str(node.module))
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            settings = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            if name in UNSAFE_NAMES | UNSAFE_ATTRIBUTES or settings.get("allow_pickle") == "True" or settings.get("shell") == "True":
                found.append(name)
            if settings.get("trust_remote_code", "False") != "False" or settings.get("weights_only") == "False":
                found.append(name)
            owner, _, method = name.rpartition(".")
            is_auto = "auto" in owner.lower()
            if method in NEED_A_REFUSAL and is_auto and settings.get("trust_remote_code") != "False":
                found.append(f"{name} without trust_remote_code=False")
    return found


def test_no_module_can_unpickle_or_run_what_it_reads() -> None:
    modules = [path for path in PACKAGE.rglob("*.py") if "_recipes" not in path.parts] + list((PACKAGE.parent / "recipes").glob("*.py"))
    assert len(modules) > 100
    assert {str(path): uses for path in modules if (uses := unsafe_uses(path.read_text(encoding="utf-8")))} == {}


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import load",
        "torch.load(path)",
        "np.load(path, allow_pickle=True)",
        "yaml.load(text, Loader=yaml.Loader)",
        "eval(text)",
        "subprocess.run(words, shell=True)",
        "AutoModel.from_pretrained(name)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "AutoTokenizer.from_pretrained(name, trust_remote_code=flag)",
        "auto_model.from_config(config)",
    ],
)
def test_an_unsafe_use_is_found(source: str) -> None:
    assert unsafe_uses(source)


def test_rows_of_a_table_are_data_whatever_they_say(run: Run, tiny_bert: Path, tmp_path: Path, marker: Path) -> None:
    evil = [
        f"!!python/object/apply:os.mkdir ['{marker}']",
        f"$(mkdir {marker})",
        f"`mkdir {marker}`",
        f"{{{{ ''.__class__ }}}}; mkdir {marker}",
    ]
    rows = [{"text": f"{evil[index % 4]} {row['text']}", "label": evil[index % 2]} for index, row in enumerate(make_rows(60))]
    data = write_csv(tmp_path / "x.csv", rows)
    code, _, err = run("run", "text", "--dataset", data, "--checkpoint", tiny_bert, *RUN)
    assert code == 0, err
