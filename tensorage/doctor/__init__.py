"""A look at a project from outside and from within: `tensorage doctor`.

`looking` asks the project and judges nothing. `findings` judges the answers and asks nobody.
"""
