"""Fuzzing of every decoder of bytes from outside: what it may do with any bytes is read them or refuse them with its own error."""
