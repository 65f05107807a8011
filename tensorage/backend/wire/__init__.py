"""HTTP requests to a Supabase project, and what can go wrong with them."""
