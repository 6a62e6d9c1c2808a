"""Many runs: grids, searches, GPU slots and jobs in processes of their own."""
