"""Recipes as files: those of the package, a user's own, and a new one begun from another."""

import ast
import importlib.util
import re
import traceback
from pathlib import Path

from hf_transfer.disk import expanded
from hf_transfer.errors import ConfigError, TransferError, did_you_mean, first_line, listed
from hf_transfer.recipe import Recipe, read_yaml

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
NEW_RECIPE_HEADER = '''"""{name}: say what the rows and labels are.

    hf-transfer validate {file}
    hf-transfer run {file}
    accelerate launch {file} --seeds 0 1 2
{embedded}
Begun from the recipe {source}; put your own numbers here once you have them: device, date, command.
"""
'''


def load_recipe(name: str | Path) -> Recipe:
    """Give a recipe by its name, by the Python file that holds it as `RECIPE`, or by a YAML file.

    Raises:
        ConfigError: There is no such recipe; suggests the nearest.
    """
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        return Recipe.from_dict({key: value for key, value in read_yaml(path).items() if key != "run"})
    if path.suffix != ".py":
        path = _recipes_folder() / f"{name}.py"
        known = recipe_names()
        if str(name) not in known:
            raise ConfigError(f"no recipe '{name}': there are {listed(known)}, or give a .py or .yaml file{did_you_mean(str(name), known)}")
    if not path.is_file():
        raise ConfigError(f"recipe file {path} does not exist")
    spec = importlib.util.spec_from_file_location(f"hf_transfer_recipe_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except TransferError:
        raise
    except (Exception, SystemExit) as error:
        # The user's own file: whatever it raises is theirs to mend, and is no bug of ours.
        line = error.lineno if isinstance(error, SyntaxError) else traceback.extract_tb(error.__traceback__)[-1].lineno
        raise ConfigError(f"recipe file {path} cannot be read, line {line}: {type(error).__name__}: {first_line(error)}") from error
    if not isinstance(getattr(module, "RECIPE", None), Recipe):
        raise ConfigError(f"recipe file {path} must define RECIPE = ht.Recipe(...)")
    return module.RECIPE


def recipe_names() -> list[str]:
    """Give the names of the recipes that come with the package."""
    return sorted(path.stem for path in _recipes_folder().glob("*.py"))


def new_recipe(file: str | Path, source: str | Path) -> Path:
    """Write a recipe of one's own: another's code under a new name, without its measured numbers.

    Args:
        file: Python file to write, which must not exist; its name becomes the recipe's.
        source: Name of a recipe, or a recipe file.

    Raises:
        ConfigError: The file is there, cannot be written or makes no name, or there is no such recipe.
    """
    path = expanded(file)
    if path.suffix != ".py" or not NAME.fullmatch(path.stem):
        raise ConfigError(f"a recipe file is called NAME.py, of letters, digits, . _ and -, found '{path.name}'")
    recipe = load_recipe(source)
    origin = Path(source) if Path(source).suffix == ".py" else _recipes_folder() / f"{source}.py"
    if origin.suffix != ".py" or not origin.is_file():
        raise ConfigError(f"--from takes a recipe ({listed(recipe_names())}) or a .py file, found {source}")
    text = origin.read_text(encoding="utf-8")
    body = text.split("\n", ast.parse(text).body[0].end_lineno or 0)[-1] if ast.get_docstring(ast.parse(text)) else text
    if body.count(f'name="{recipe.name}"') != 1:
        raise ConfigError(f'recipe file {origin} must say name="{recipe.name}" once: copy it by hand')
    body = body.replace(f'name="{recipe.name}"', f'name="{path.stem}"')
    embedded = f"    hf-transfer run {path.name} --dataset embedded:{recipe.name} --embedded    # no Hub needed\n"
    has_embedded = (Path(__file__).parent / "data" / "embedded" / recipe.name).is_dir()
    header = NEW_RECIPE_HEADER.format(name=path.stem, file=path.name, source=recipe.name, embedded=embedded if has_embedded else "")
    try:
        with path.open("x", encoding="utf-8") as new:
            new.write(f"{header}\n{body.lstrip(chr(10))}")
    except FileExistsError:
        raise ConfigError(f"{path} is there already: name another file") from None
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from None
    return path


def _recipes_folder() -> Path:
    """Give the folder of recipes: inside an installed wheel, or beside the package in a checkout."""
    package = Path(__file__).parent
    installed = package / "_recipes"
    return installed if installed.is_dir() else package.parent / "recipes"
