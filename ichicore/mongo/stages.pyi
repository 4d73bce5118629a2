def check_collection(name: str) -> None:
    """ApiError 400 invalid_collection unless requests may name it."""
