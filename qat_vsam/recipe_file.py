"""Recipe files: where they are, reading them safely, and writing what they resolve to.

What is read is plain YAML of modest size, without aliases, tags or doubled keys.
"""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent

from qat_vsam.errors import ConfigError, did_you_mean, explain

MAX_BYTES = 256 * 1024
MAX_DEPTH = 20


def find_config(name: str) -> Path:
    """The file of a recipe: a path, or the NAME of a shipped one (`NAME/compare.yaml` or `NAME.yaml`).

    Raises:
        ConfigError: neither a file nor a known name.
    """
    if name.endswith((".yaml", ".yml")):
        path = Path(name)
        if path.is_file():
            return path
        raise ConfigError(explain("recipe", name, "a file that exists", "see `qat-vsam ls` for shipped recipes"))
    shipped = shipped_configs()
    if name in shipped:
        return shipped[name]
    raise ConfigError(explain("recipe", name, "a shipped recipe or a .yaml file", did_you_mean(name, shipped)))


def shipped_configs() -> dict[str, Path]:
    """Name -> file of every recipe that comes with the package (in the wheel) or the checkout (editable)."""
    package = Path(__file__).parent
    found: dict[str, Path] = {}
    for folder in (package / "configs", package.parent / "configs"):
        for path in sorted(folder.rglob("*.yaml")):
            relative = path.relative_to(folder).with_suffix("")
            name = str(relative.parent if relative.name == "compare" else relative)
            found.setdefault(name, path)
    return found


def read_recipe_file(path: Path) -> dict[str, Any]:
    """The content of a recipe or comparison file, parsed and not yet checked.

    Raises:
        ConfigError: unreadable, or not plain YAML.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ConfigError(explain(str(path), "a larger file", f"at most {MAX_BYTES} bytes", "check the path"))
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(explain(str(path), error, "a readable text file", "check the path")) from None
    return read_yaml(text, str(path))


def read_yaml(text: str, source: str) -> dict[str, Any]:
    """Parse a recipe's text; aliases, tags, duplicate keys, deep nesting and huge files are refused.

    Raises:
        ConfigError: with the file and line.
    """
    if len(text.encode(errors="replace")) > MAX_BYTES:
        raise ConfigError(explain(source, "a larger file", f"at most {MAX_BYTES} bytes", "check the path"))
    try:
        depth = 0
        for event in YAML(typ="safe", pure=True).parse(io.StringIO(text)):
            depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
            if isinstance(event, AliasEvent):
                raise ConfigError(explain(source, "an alias (*name)", "plain YAML", "write the value out"))
            if depth > MAX_DEPTH:
                raise ConfigError(explain(source, "deep nesting", f"<= {MAX_DEPTH} levels", "flatten it"))
        content = YAML(typ="safe", pure=True).load(io.StringIO(text))
    except (YAMLError, ValueError, RecursionError) as error:
        if isinstance(error, ConfigError):
            raise
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(explain(source, reason, "a YAML mapping", "correct the line named")) from None
    if not isinstance(content, dict):
        raise ConfigError(explain(source, type(content).__name__, "a YAML mapping", "see `qat-vsam ls`"))
    return content


def dump_yaml(section: BaseModel) -> str:
    """The resolved recipe as YAML, every default written out."""
    stream = io.StringIO()
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.dump(section.model_dump(mode="json"), stream)
    return stream.getvalue()


def fingerprint(section: BaseModel) -> str:
    """sha256 of the resolved recipe: equal exactly when every option is."""
    canonical = json.dumps(section.model_dump(mode="json"), sort_keys=True)
    return hashlib.sha256(canonical.encode()).hexdigest()
