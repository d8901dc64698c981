"""The workshop itself: the cache, a fresh machine, the runner, the bench, the fault kit, the package, the recipes.

Contract: nothing here is about the addon's code. Imports stack and bench, no other room.
"""
