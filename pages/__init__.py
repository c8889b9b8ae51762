"""The web page, one module a tab: draws, and calls the verbs of the command lines."""
