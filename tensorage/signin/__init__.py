"""The login of a session: the SDK, tokens, and other processes that borrow them."""
