"""What stands between a user's call and the computation: checks of arguments, compilation keys, errors in
words, checkpoints, devices.
"""
