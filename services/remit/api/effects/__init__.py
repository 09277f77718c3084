"""Generated from protos/remit/api/effects by `make protos`; never edited."""
