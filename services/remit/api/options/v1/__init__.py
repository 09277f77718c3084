"""Generated from protos/remit/api/options/v1 by `make protos`; never edited."""
