"""Two annotators describe the same videos: which sentences belong together?"""
