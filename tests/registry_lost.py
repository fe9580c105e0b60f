"""A registry that is lost at its n-th change."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from mlflow.exceptions import MlflowException
from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore

CHANGES = (
    "create_registered_model",
    "create_model_version",
    "update_model_version",
    "set_model_version_tag",
    "delete_model_version_tag",
    "set_registered_model_tag",
    "set_registered_model_alias",
    "delete_registered_model_alias",
)


@contextmanager
def lost_at(number: int) -> Iterator[list[str]]:
    """Let MLflow's registry fail at a change, counted from 1, and at all after it; yield the names of those before."""
    done: list[str] = []

    def failing(name: str, change: Callable[..., Any]) -> Callable[..., Any]:
        def called(*arguments: Any, **options: Any) -> Any:
            if len(done) + 1 >= number:
                raise MlflowException("API request failed: Connection refused")
            done.append(name)
            return change(*arguments, **options)

        return called

    with pytest.MonkeyPatch.context() as patch:
        for name in CHANGES:
            patch.setattr(SqlAlchemyStore, name, failing(name, getattr(SqlAlchemyStore, name)))
        yield done
