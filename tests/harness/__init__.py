"""The harness's tests. What helpers assert is told as fully as what tests do."""

import pytest

pytest.register_assert_rewrite(f"{__name__}.logged_runs")
