"""Images and masks in shards: WebDataset's tars and Parquet, on this machine or in an object store. Free of torch."""
