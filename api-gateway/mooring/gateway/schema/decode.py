"""JSON request bodies into models: checked field by field, with errors that name the field.

As Go's decoder does: names match in any case, null leaves a field at its default, unknown fields
are ignored.
"""

from __future__ import annotations

import json
from functools import cache
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from mooring.gateway.http.request import Request
from mooring.kit.errors import InvalidParameter

M = TypeVar("M", bound=BaseModel)

_MAX_DEPTH = 64
_INT64 = 1 << 63


async def json_body(request: Request, limit: int, *, required: bool = False) -> dict[str, Any]:
    """The body as a JSON object, {} if it is empty; InvalidParameter, HttpError 413."""
    body = await request.body(limit)
    if not body:
        if required:
            raise InvalidParameter("invalid JSON: got EOF while reading request body")
        return {}
    content_type = request.head.headers.get("content-type", "")
    if content_type.partition(";")[0].strip().lower() != "application/json":
        raise InvalidParameter(
            f"unsupported Content-Type header ({content_type[:60]}): must be 'application/json'"
        )
    return parse(body)


def parse(body: bytes) -> dict[str, Any]:
    """One JSON object and nothing after it; InvalidParameter."""
    try:
        value = json.loads(body.decode(), parse_int=_int, parse_constant=_refuse_constant)
    except UnicodeDecodeError:
        raise InvalidParameter("invalid JSON: not valid UTF-8") from None
    except RecursionError:
        raise InvalidParameter("invalid JSON: exceeded max depth") from None
    except json.JSONDecodeError as exc:
        if exc.msg == "Extra data":
            raise InvalidParameter("unexpected content after JSON") from None
        raise InvalidParameter(f"invalid JSON: {exc.msg} (at byte {exc.pos})") from None
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InvalidParameter(
            f"invalid JSON: json: cannot unmarshal {_kind(value)} into an object"
        )
    _check(value, 1)
    return value


def fit(model: type[M], value: dict[str, Any], *, where: str = "") -> M:
    """A JSON object as a model; InvalidParameter with the field that does not fit.

    where is the object's own place in the body, if it is not the whole.
    """
    try:
        return model.model_validate(_prepare(model, value), strict=True)
    except ValidationError as exc:
        raise InvalidParameter(_words(where or model.__name__.lstrip("_"), exc)) from None


def _prepare(model: type[BaseModel], value: dict[str, Any]) -> dict[str, Any]:
    fields = _fields(model)
    result: dict[str, Any] = {}
    for name, item in value.items():
        field = fields.get(name) or fields.get(name.lower())
        if field is None or item is None:
            continue
        alias, nested, shape = field
        if nested is not None:
            if shape is None and isinstance(item, dict):
                item = _prepare(nested, item)
            elif shape is list and isinstance(item, list):
                item = [_prepare(nested, each) if isinstance(each, dict) else each for each in item]
            elif shape is dict and isinstance(item, dict):
                item = {key: _prepared_list(nested, each) for key, each in item.items()}
        elif shape is str and isinstance(item, str):
            # Cmd, Entrypoint and Shell may be one string.
            item = [item]
        elif shape is dict and isinstance(item, dict):
            item = {key: {} if each is None else each for key, each in item.items()}
        result[alias] = item
    return result


def _prepared_list(nested: type[BaseModel], value: Any) -> Any:
    if not isinstance(value, list):
        return value
    return [_prepare(nested, each) if isinstance(each, dict) else each for each in value]


_Field = tuple[str, type[BaseModel] | None, type | None]
_ONE_OR_MORE = frozenset({"Cmd", "Entrypoint", "Shell"})
_OBJECT_SETS = frozenset({"ExposedPorts", "Volumes"})


@cache
def _fields(model: type[BaseModel]) -> dict[str, _Field]:
    """By lower-case and by exact name: the alias, the model inside, and what holds that."""
    found: dict[str, _Field] = {}
    for name, info in model.model_fields.items():
        alias = info.alias or name
        nested, shape = _nested(info.annotation)
        if nested is None and alias in _ONE_OR_MORE:
            shape = str
        if nested is None and alias in _OBJECT_SETS:
            shape = dict
        found[alias] = found[alias.lower()] = (alias, nested, shape)
    return found


def _nested(annotation: Any) -> tuple[type[BaseModel] | None, type | None]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation, None
    origin = get_origin(annotation)
    if origin in (Union, UnionType):
        for part in get_args(annotation):
            nested, shape = _nested(part)
            if nested is not None:
                return nested, shape
    elif origin in (list, dict):
        nested, _ = _nested(get_args(annotation)[-1])
        return nested, origin
    return None, None


def _int(text: str) -> int:
    number = int(text) if len(text) <= 20 else _INT64
    if not -_INT64 <= number < _INT64:
        raise InvalidParameter(
            f"invalid JSON: json: cannot unmarshal number {text[:40]} into a field of type int64"
        )
    return number


def _refuse_constant(text: str) -> Any:
    raise InvalidParameter(f"invalid JSON: invalid character in {text}")


def _check(value: Any, depth: int) -> None:
    """Depth within bounds, and no half of a surrogate pair, which is no text."""
    if depth > _MAX_DEPTH:
        raise InvalidParameter("invalid JSON: exceeded max depth")
    if isinstance(value, dict):
        for key, item in value.items():
            _check(key, depth)
            _check(item, depth + 1)
    elif isinstance(value, list):
        for item in value:
            _check(item, depth + 1)
    elif isinstance(value, str) and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise InvalidParameter("invalid JSON: a string is not valid Unicode") from None


_GO_TYPES = {
    "string_type": "string",
    "int_type": "int64",
    "bool_type": "bool",
    "list_type": "[]string",
    "dict_type": "map",
    "float_type": "float64",
}


def _words(owner: str, exc: ValidationError) -> str:
    first = exc.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"] if part != "[key]")
    kind = _GO_TYPES.get(first["type"], "object")
    if first["type"] in ("model_type", "model_attributes_type"):
        kind = "object"
    return (
        f"invalid JSON: json: cannot unmarshal {_kind(first['input'])} into Go struct field "
        f"{owner}.{where} of type {kind}"
    )


def _kind(value: Any) -> str:
    match value:
        case bool():
            return "bool"
        case str():
            return "string"
        case int():
            return "number"
        case float():
            return f"number {value}"
        case list():
            return "array"
        case dict():
            return "object"
    return "null"
