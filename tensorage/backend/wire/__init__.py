"""HTTP requests to a Supabase project, and their faults."""
