"""Networks: tensors -> tensors, in 2D and 3D by one `dims` argument."""
