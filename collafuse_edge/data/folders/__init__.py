"""Folders of files as one data set."""
