"""Small models for the tests of the kit."""

from mooring.kit.models.base import Done, Model, Request


class Ask(Request):
    text: str = ""
    wait: float = 0.0


class Answer(Done):
    text: str = ""


class Record(Model):
    version: int = 1
    name: str
    value: int = 0
