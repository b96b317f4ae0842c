"""One function a verb of `fiat`: arguments and settings to a call of what does the work, and to an exit status.

Each takes the parsed arguments and the bindings of `--gin.NAME=VALUE`. A module is imported when one of its verbs is
called, so that no verb waits for the libraries of another.
"""
