# The service on the CPU: docker build -t wordbrush . && docker run -p 8000:8000 -v wordbrush:/data wordbrush
FROM python:3.11-slim

WORKDIR /app
COPY pyproject.toml constraints.txt README.md LICENSE NOTICE ./
COPY src src
# torch first, from the index with the build that has no CUDA in it.
RUN pip install --no-cache-dir --constraint constraints.txt --index-url https://download.pytorch.org/whl/cpu torch \
 && pip install --no-cache-dir --constraint constraints.txt '.[serve,heif]' \
 && useradd --create-home --uid 1000 wordbrush \
 && mkdir /data && chown wordbrush /data

USER wordbrush
VOLUME /data
EXPOSE 8000
HEALTHCHECK CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/healthz', timeout=5)"]
ENTRYPOINT ["wordbrush", "serve", "--host", "0.0.0.0", "--folder", "/data"]
