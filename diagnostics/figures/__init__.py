"""The report's figures: vector, one style, readable in print, by colour-blind readers and on light and dark pages."""
