"""The cost that agents on disk have for those who wake others."""
