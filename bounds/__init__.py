"""The theory as pure functions of (forward, parameters, data); see docs/theory.md."""
