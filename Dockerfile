# A server of an exported model, without torch:
#   python -m tools.export --checkpoint output/sample/checkpoints/best --output_dir shipped
#   docker build -t labels . && docker run -p 8000:8000 labels
FROM python:3.11-slim
WORKDIR /app
COPY shipped/requirements.txt requirements.txt
COPY tools/serve/requirements.txt serve_requirements.txt
RUN pip install --no-cache-dir -r requirements.txt -r serve_requirements.txt
COPY tools/serve/__main__.py serve.py
COPY shipped shipped
USER nobody
EXPOSE 8000
CMD ["python", "serve.py", "shipped", "--host", "0.0.0.0"]
