"""Generated from protos/remit/api/effects/v1 by `make protos`; never edited."""
