"""Generated from protos/remit/api/usage/v1 by `make protos`; never edited."""
