"""The sections of a bound report, each computed on its own from a workspace; a section is a data class of numbers."""
