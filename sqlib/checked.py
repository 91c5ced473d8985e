"""What every file of parameters is held to: strict models, and mistakes said in one line that a user can act on."""

import difflib
import functools
import hashlib
import json
import re
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from sqlib.places import shown_path


class SqlibError(Exception):
    """An error the user can act on: printed as one line, without a traceback."""


class Strict(BaseModel):
    # Strict: no "1e-3" taken for a number, no "yes" for a truth value; unknown keys are errors.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Recorded(BaseModel):
    """What readers of a result file rely on, null where a value is not known; whatever else is in the file stays."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)


NAME = r"[A-Za-z0-9_-][A-Za-z0-9_.-]*"
Name = Annotated[
    str, Field(pattern=f"^{NAME}$", max_length=100, description="it names a folder, and stands in every page")
]


def nearest(word: str, known) -> str:
    """' (did you mean ...?; known: ...)' for an error message."""
    known = [str(k) for k in known]
    close = difflib.get_close_matches(str(word), known, n=1, cutoff=0.5)
    hint = f"; did you mean '{close[0]}'?" if close else ""
    listed = ", ".join(known[:12]) + (", ..." if len(known) > 12 else "")
    return f"{hint} (known: {listed})"


def short(value: Any, length: int = 300) -> str:
    """A value as text on one line, cut at `length` characters."""
    text = " ".join(str(value).split())
    return text if len(text) <= length else f"{text[:length]} ..."


def digest(value: Any) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of a JSON-able value or pydantic model."""
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def validate(model: type[BaseModel], content: dict, path: Path):
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise SqlibError("\n".join(f"{shown_path(path)}: {line}" for line in mistakes(model, error))) from None


def check_recorded(kind: Any, content: Any, path: Path) -> None:
    """SqlibError, one line with file, place and fault, unless what was read from a result file is of this kind or model."""
    try:
        _adapter(kind).validate_python(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(short(part, 60) for part in first["loc"])
        raise SqlibError(f"{path}: damaged: {short(where)}: {first['msg']}") from None


_adapter = functools.cache(TypeAdapter)


def mistakes(model: type[BaseModel], error: ValidationError) -> list[str]:
    """What is wrong, a line for each mistake: key, value, what was expected, the nearest valid name."""
    # An unknown key first: it may be the one that is missing, misspelt.
    details = sorted(error.errors(), key=lambda detail: detail["type"] != "extra_forbidden")
    lines = [short(_one_line(model, detail), 600) for detail in details if _of_this_kind(detail)]
    return list(dict.fromkeys(lines))


def _of_this_kind(detail: dict) -> bool:
    """Where a value may be a number or a mapping, pydantic complains on behalf of both: keep the one that was meant."""
    if detail["type"] == "extra_forbidden":
        return True
    branch = str(detail["loc"][-1]) if detail["loc"] else ""
    is_mapping = isinstance(detail.get("input"), dict)
    return not (branch.startswith("dict[") and not is_mapping) and not (
        re.match(r"int$|constrained-int", branch) and is_mapping
    )


def _one_line(model: type[BaseModel], detail: dict) -> str:
    location = [str(part) for part in detail["loc"]]
    # pydantic names the members of a union in the location; they mean nothing to the reader of a YAML file.
    unions = r"(int|constrained-.*|dict\[.*|function-.*)"
    *above, last = location or [""]
    above = [part for part in above if not re.fullmatch(unions, part)]
    if detail["type"] == "extra_forbidden":  # a key of the user's own, whatever it is called
        return f"unknown key '{'.'.join([*above, last])}'{nearest(last, _keys_at(model, above))}"
    key = ".".join(above if re.fullmatch(unions, last) else [*above, last])
    value = detail.get("input")
    if detail["type"] == "missing":
        return f"key '{key}' is missing"
    message = re.sub(r"^(Value error, |Input should be )", "", detail["msg"])
    shown = "" if isinstance(value, (dict, BaseModel)) else f" = {short(repr(value), 80)}"
    wrong = message if detail["type"] == "value_error" else f"should be {message}"
    hint = ""
    if isinstance(value, str) and detail["type"] == "literal_error":
        options = re.findall(r"'([^']*)'", detail["ctx"]["expected"])
        hint = nearest(value, options).split(" (known")[0]
    elif isinstance(value, str) and re.fullmatch(r"[-+0-9.eE_]+", value):
        hint = " (it is text here: write the number without quotes)"
    return f"{key}{shown}: {wrong}{hint}" if key else f"{wrong}{hint}"


def _keys_at(model: type[BaseModel], location: list[str]) -> list[str]:
    """The keys that are valid there: a part of the location that is no field is the key of a mapping, or a place in a list."""
    for part in location:
        field = model.model_fields.get(part)
        annotation = field.annotation if field else None
        for inner in (annotation, *get_args(annotation)):
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                model = inner
    return [name for name in model.model_fields if name != "name"]
