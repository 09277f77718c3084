"""Generated from protos/remit/api/inference/v1 by `make protos`; never edited."""
