"""Numbers as text, on the terminal and on the page."""

from __future__ import annotations

from bounds.types import Estimate


def shown(estimate: Estimate) -> str:
    """Return a value with its standard error, if it has one."""
    return f"{estimate.value:.3f} ± {estimate.stderr:.3f}" if estimate.stderr else f"{estimate.value:.3f}"


def tau(value: float | None) -> str:
    """Kendall's τ, or that it is not defined."""
    return "not defined" if value is None else f"{value:+.2f}"


def number(value: float | None, digits: int = 3) -> str:
    """Return a number with ``digits`` significant figures; a dash for none."""
    return "–" if value is None or value != value else f"{value:.{digits}g}"


def fixed(value: float, digits: int = 3) -> str:
    """Return a number with ``digits`` decimals."""
    return f"{value:.{digits}f}".replace("-", "−")


def signed(value: float, digits: int = 3) -> str:
    """Return a difference with its sign."""
    return f"{value:+.{digits}f}".replace("-", "−")


def percent(value: float) -> str:
    """Return a rate in per cent with one decimal."""
    return f"{100 * value:.1f}".replace("-", "−")


def estimate(value: Estimate) -> str:
    """Return a value and, if it has one, its standard error, as the page writes them."""
    text = f"{value.value:.3f}".replace("-", "−")
    return f"{text} ± {value.stderr:.3f}" if value.stderr else text


def signed_estimate(value: Estimate) -> str:
    """Return a difference with its sign and, if it has one, its standard error."""
    text = f"{value.value:+.3f}" if abs(value.value) >= 5e-4 else "0.000"
    return f"{text} ± {value.stderr:.3f}".replace("-", "−") if value.stderr else text.replace("-", "−")


def number_estimate(value: Estimate) -> str:
    """Return a value of any size with its standard error, both as :func:`number`."""
    return (
        f"{number(value.value)} ± {number(value.stderr, 2)}".replace("-", "−") if value.stderr else number(value.value)
    )


def points(value: Estimate) -> str:
    """Return a difference of rates in percentage points, with its sign and its standard error."""
    text = f"{100 * value.value:+.1f}" if abs(value.value) >= 5e-4 else "0.0"
    return f"{text} ± {100 * value.stderr:.1f}".replace("-", "−") if value.stderr else text.replace("-", "−")


def p_value(value: float) -> str:
    """Return a p-value; a small one by its order alone."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def percent_estimate(value: Estimate | None, digits: int = 1) -> str:
    """Return a rate in per cent with its standard error; a dash for none."""
    if value is None:
        return "–"
    return f"{100 * value.value:.{digits}f} ± {100 * value.stderr:.{digits}f}".replace("-", "−")
