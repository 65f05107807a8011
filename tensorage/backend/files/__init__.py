"""Files of a user, beside the arrays, in Supabase Storage."""
