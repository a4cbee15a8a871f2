"""The artefacts of docs/formats.md: a reader and a writer each."""
