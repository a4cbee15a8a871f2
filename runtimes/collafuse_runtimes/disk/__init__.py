"""How bytes reach a disk and come back: written aside, locked, private, found again."""
