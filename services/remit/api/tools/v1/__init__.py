"""Generated from protos/remit/api/tools/v1 by `make protos`; never edited."""
