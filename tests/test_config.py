"""What an engine takes when nothing is said: by the device."""

from __future__ import annotations

import pytest
from qdengine import EngineConfig
from qdengine.errors import ConfigError


def test_sizes_follow_the_device_where_they_are_not_given():
    assert EngineConfig().sizes(None) == (1 << 30, 64, 1024)
    assert EngineConfig().sizes(80 << 30) == (40 << 30, 256, 8192)
    given = EngineConfig(kv_bytes=5000, max_sequences=3, max_step_tokens=7)
    assert given.sizes(None) == given.sizes(80 << 30) == (5000, 3, 7)
    assert EngineConfig(max_sequences=3).sizes(1 << 30) == (1 << 29, 3, 8192)


@pytest.mark.parametrize("name", ["kv_bytes", "max_sequences", "max_step_tokens", "lookahead"])
def test_what_is_given_is_checked(name):
    with pytest.raises(ConfigError, match=f"EngineConfig.{name} is -1"):
        EngineConfig(**{name: -1})
