"""Generated from protos/remit/api/options by `make protos`; never edited."""
