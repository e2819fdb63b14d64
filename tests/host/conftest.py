"""The files on a second device run in processes of their own; see test_far_device.py."""

collect_ignore = ["test_memory.py", "test_placement.py"]
