"""The use cases, as generators of small frozen events. Silent: nothing here prints."""
